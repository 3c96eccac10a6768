"""Pictures from the web: politely, from public addresses only, within time and size."""

from data_pipeline.fetch.background import Fetching
from data_pipeline.fetch.config import FetchConfig

__all__ = ["FetchConfig", "Fetching"]
