"""Names and types of the data contracts, for readers outside this package."""
