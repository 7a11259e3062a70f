"""Many runs of one task: what a sweep's file says, and its runs on Ray Tune or Slurm."""
