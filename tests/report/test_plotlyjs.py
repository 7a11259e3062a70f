import re

import pytest

from arelu_meta.report.render import KINDS, plotly_script, starting_only

BUNDLE = (
    'var k=W((a,b)=>{"use strict";b.exports={moduleType:"trace",name:"bar"}});'
    'var l=W((a,b)=>{"use strict";b.exports=k()});'
    'var m=W((a,b)=>{"use strict";b.exports={moduleType:"trace",name:"heatmap"}});'
    'var n=W((a,b)=>{"use strict";b.exports=m()});'
    "core.register([scatter,legend]);all.register([l(),n()]);"
)


def test_only_the_kinds_of_a_page_are_started() -> None:
    assert starting_only(BUNDLE, ("heatmap", "scatter")) == BUNDLE.replace("[l(),n()]", "[n()]")
    assert starting_only(BUNDLE, ("bar", "heatmap")) == BUNDLE
    assert starting_only(BUNDLE, ("scatter",)) == BUNDLE.replace("[l(),n()]", "[]")


@pytest.mark.parametrize(
    "other",
    [
        "",
        BUNDLE.replace('"heatmap"', '"map"'),
        BUNDLE.replace("[l(),n()]", "[l(),o()]"),
        BUNDLE.replace("register", "add"),
        BUNDLE + BUNDLE,
        BUNDLE.replace("exports=m()", "exports=1"),
    ],
)
def test_a_bundle_that_is_built_otherwise_stays_as_it_is(other: str) -> None:
    assert starting_only(other, KINDS) == other


def test_of_the_installed_bundle_all_but_one_list_stays() -> None:
    from plotly.offline import get_plotlyjs

    whole, ours = str(get_plotlyjs()), plotly_script()
    assert len(whole) - 1000 < len(ours) < len(whole)
    assert re.search(r"\.register\(\[\w+\(\)\]\)", ours)
    assert "</script" not in ours
