"""Networks: plain torch modules that know no rank, no config file and no global."""
