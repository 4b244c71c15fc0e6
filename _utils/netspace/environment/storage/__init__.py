"""Storage of environments: mounts, root file systems, volumes, disks, files that are handed in."""
