"""What watches over a run: losses that blow up, ranks that hang or lag, disks that fill."""
