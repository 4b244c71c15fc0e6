"""Storage of environments: mounts, root file systems, volumes, disks, and files that netspace writes for programs."""
