"""Where a run's numbers go beside metrics.jsonl. Each outlet has the face of `base.Outlet`."""
