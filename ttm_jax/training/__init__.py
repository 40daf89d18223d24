"""The one trainer: configs, the loop, run folders, checkpoints, commands. Knows no task."""
