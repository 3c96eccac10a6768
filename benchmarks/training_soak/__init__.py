"""A training run of two ranks under seeded faults, beside a quiet one."""
