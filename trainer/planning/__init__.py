"""What a run will take, told before it begins: memory, arithmetic, days. Nothing is allocated."""
