"""Where each named data set comes from: what it is, who made it, on what terms, and where its files lie."""

from dataclasses import dataclass
from typing import Literal

Had = Literal["embedded", "made", "torchvision", "learn2learn", "by hand"]


@dataclass(frozen=True)
class NamedSource:
    """Where a named set comes from.

    Args:
        what: it shows, how many, how large.
        source: who made it, and when.
        terms: on which it may be used.
        had: how it gets here.
        size: of the download, as a person would say it; empty where there is none.
        place: where its files lie below the root.
        layout: what the files look like there, where it is a folder of images.
        folders: that must be there.
        root: whether it goes by data.root, as any folder does, and not by data.name.
        tasks: the commands that read it.
    """

    what: str
    source: str
    terms: str
    had: Had = "torchvision"
    size: str = ""
    place: str = ""
    layout: str = ""
    folders: tuple[str, ...] = ()
    root: bool = False
    tasks: tuple[str, ...] = ("finetune", "metatrain")


_UNSTATED = "not stated by its makers"
_RESEARCH = "research that is not commercial"
_IMAGENET = "ImageNet's: research that is not commercial, agreed to when it is asked for"
_CIFAR = "not stated by its makers; the photographs are from the web"
_META = ("metatrain",)
_SET = NamedSource

CATALOGUE: dict[str, NamedSource] = {
    "digits": _SET(
        "handwritten digits: 1,797 grey images of 8 px, 10 classes",
        "Alpaydin and Kaynak 1998; inside scikit-learn",
        "CC BY 4.0",
        "embedded",
    ),
    "flowers17": _SET(
        "flowers: 17 classes of 80 photographs, no split",
        "Nilsback and Zisserman 2006: Oxford 17 Category Flower Dataset, from its makers' page",
        _UNSTATED,
        "by hand",
        "60 MB",
        "flowers17",
        "CLASS/*.jpg: the archive holds image_0001.jpg to image_1360.jpg, 80 of each class one after the other",
        root=True,
    ),
    "cifar10-subset": _SET(
        "things: 1,000 training and 200 test photographs of each of CIFAR-10's classes, 32 px",
        "Krizhevsky 2009, drawn from CIFAR-10, which goes by --data.name cifar10",
        _CIFAR,
        "by hand",
        "170 MB",
        "cifar10-subset",
        "train/CLASS/*.jpg and test/CLASS/*.jpg",
        root=True,
    ),
    "omniglot-small": _SET(
        "characters: two sets of 5 alphabets, 136 and 156 characters of 20 drawers, 105 px",
        "Lake et al. 2015: images_background_small1.zip and images_background_small2.zip of Omniglot's repository",
        "MIT",
        "by hand",
        "6 MB",
        "omniglot-small",
        "images_background_small1/ALPHABET/CHARACTER/*.png and images_background_small2/…, as the archives unpack",
        folders=("images_background_small1", "images_background_small2"),
        tasks=_META,
    ),
    "mnist-m": _SET(
        "digits over photographs: 70,000 images of 28 px, 10 classes",
        "Ganin and Lempitsky 2015; made here of mnist and of cifar10-subset or cifar10",
        "those of both",
        "made",
        "182 MB",
        tasks=("finetune",),
    ),
    "mnist": _SET(
        "digits: 70,000 grey images of 28 px",
        "LeCun et al. 1998",
        "CC BY-SA 3.0",
        layout="MNIST/raw/*-ubyte",
        size="12 MB",
    ),
    "fashionmnist": _SET(
        "clothes: 70,000 grey images of 28 px, 10 classes",
        "Xiao et al. 2017",
        "MIT",
        layout="FashionMNIST/raw/*-ubyte",
        size="31 MB",
    ),
    "kmnist": _SET(
        "cursive kana: 70,000 grey images of 28 px",
        "Clanuwat et al. 2018",
        "CC BY-SA 4.0",
        layout="KMNIST/raw/*-ubyte",
        size="21 MB",
    ),
    "qmnist": _SET("digits: MNIST with 50,000 more for the test", "Yadav and Bottou 2019", "BSD", size="20 MB"),
    "emnist": _SET(
        "letters and digits: 131,600 of 28 px, 47 classes",
        "Cohen et al. 2017",
        _UNSTATED,
        layout="EMNIST/raw/*-ubyte",
        size="560 MB",
    ),
    "usps": _SET("digits of letters: 9,298 grey images of 16 px", "Hull 1994", _UNSTATED, size="8 MB"),
    "semeion": _SET("digits: 1,593 black and white images of 16 px", "Semeion 1994", "CC BY 4.0", size="3 MB"),
    "omniglot": _SET(
        "characters: 1,623 of 50 alphabets, 20 drawers each, 105 px; finetune takes its 964 background characters",
        "Lake et al. 2015, through learn2learn for few-shot tasks, through torchvision for finetune",
        "MIT",
        layout="omniglot-py/images_background/ and images_evaluation/",
        size="20 MB",
    ),
    "svhn": _SET(
        "house numbers: 99,289 photographs of 32 px",
        "Netzer et al. 2011",
        _RESEARCH,
        layout="*_32x32.mat",
        size="250 MB",
    ),
    "cifar10": _SET(
        "things: 60,000 photographs of 32 px, 10 classes",
        "Krizhevsky 2009",
        _CIFAR,
        layout="cifar-10-batches-py/",
        size="170 MB",
    ),
    "cifar100": _SET(
        "things: 60,000 photographs of 32 px, 100 classes",
        "Krizhevsky 2009",
        _CIFAR,
        layout="cifar-100-python/",
        size="169 MB",
    ),
    "stl10": _SET(
        "things: 13,000 photographs of 96 px, 10 classes",
        "Coates et al. 2011",
        _IMAGENET,
        layout="stl10_binary/",
        size="2.6 GB",
    ),
    "flowers102": _SET(
        "flowers: 8,189 photographs, 102 classes",
        "Nilsback and Zisserman 2008",
        _UNSTATED,
        layout="flowers-102/",
        size="350 MB",
    ),
    "food101": _SET(
        "dishes: 101,000 photographs, 101 classes", "Bossard et al. 2014", _UNSTATED, layout="food-101/", size="5 GB"
    ),
    "oxfordiiitpet": _SET(
        "cats and dogs: 7,349 photographs, 37 breeds",
        "Parkhi et al. 2012",
        "CC BY-SA 4.0",
        layout="oxford-iiit-pet/",
        size="800 MB",
    ),
    "fgvcaircraft": _SET("aircraft: 10,000 photographs, 100 kinds", "Maji et al. 2013", _RESEARCH, size="2.8 GB"),
    "dtd": _SET("textures: 5,640 photographs, 47 classes", "Cimpoi et al. 2014", "research", size="600 MB"),
    "gtsrb": _SET("traffic signs: 39,270 photographs, 43 classes", "Stallkamp et al. 2012", _UNSTATED, size="280 MB"),
    "stanfordcars": _SET(
        "cars: 16,185 photographs, 196 kinds; its own page is gone, so it is put there by hand",
        "Krause et al. 2013",
        _RESEARCH,
        layout="stanford_cars/",
        size="1.9 GB",
    ),
    "country211": _SET("places: 63,300 photographs, 211 countries", "Radford et al. 2021", "CC", size="11 GB"),
    "renderedsst2": _SET("sentences as images: 9,613, 2 classes", "Radford et al. 2021", _UNSTATED, size="380 MB"),
    "pcam": _SET("tissue: 327,680 patches of 96 px, 2 classes", "Veeling et al. 2018", "CC0", size="8 GB"),
    "sun397": _SET("scenes: 108,754 photographs, 397 classes", "Xiao et al. 2010", "research", size="39 GB"),
    "eurosat": _SET("land from above: 27,000 images of 64 px, 10 classes", "Helber et al. 2019", "MIT", size="90 MB"),
    "caltech101": _SET("things: 8,677 photographs, 101 classes", "Li et al. 2004", "CC BY 4.0", size="140 MB"),
    "caltech256": _SET("things: 30,607 photographs, 257 classes", "Griffin et al. 2007", "CC BY 4.0", size="1.2 GB"),
    "imagenette": _SET(
        "ten of ImageNet's classes: 13,394 photographs", "fast.ai 2019", _IMAGENET, layout="imagenette2/", size="1.5 GB"
    ),
    "imagenet": _SET(
        "things: 1,331,167 photographs, 1,000 classes; its makers give it to who asks, so it is put there by hand",
        "Russakovsky et al. 2015",
        _IMAGENET,
        layout="ILSVRC2012_*.tar",
        size="145 GB",
    ),
    "places365": _SET("scenes: 1.8 million photographs, 365 classes", "Zhou et al. 2017", _RESEARCH, size="105 GB"),
    "mini-imagenet": _SET(
        "100 of ImageNet's classes, 600 photographs of 84 px each: 64, 16 and 20 to train, validate and test on",
        "Vinyals et al. 2016, in Ravi and Larochelle's division",
        _IMAGENET,
        "learn2learn",
        "1.1 GB",
        tasks=_META,
    ),
    "tiered-imagenet": _SET(
        "608 of ImageNet's classes, 779,165 photographs of 84 px",
        "Ren et al. 2018",
        _IMAGENET,
        "learn2learn",
        "12 GB",
        tasks=_META,
    ),
    "cifar-fs": _SET(
        "CIFAR-100's classes: 64, 16 and 20", "Bertinetto et al. 2019", _CIFAR, "learn2learn", "170 MB", tasks=_META
    ),
    "fc100": _SET(
        "CIFAR-100's classes by kind: 60, 20 and 20",
        "Oreshkin et al. 2018",
        _CIFAR,
        "learn2learn",
        "160 MB",
        tasks=_META,
    ),
    "cub": _SET(
        "birds: 11,788 photographs, 200 kinds",
        "Wah et al. 2011; divided as Triantafillou et al. 2020",
        _RESEARCH,
        "learn2learn",
        "1.1 GB",
        tasks=_META,
    ),
}


def pointer(name: str) -> str:
    """Return the end of a sentence on a set that is not there: where to read how it is had; empty for other names.

    Args:
        name: of a set or a folder.
    """
    return f"; `arelu-meta data {name}` says how to get it" if name in CATALOGUE else ""
