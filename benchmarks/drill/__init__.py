"""What a run survives: kills, full disks, damaged files, and others in its folder."""
