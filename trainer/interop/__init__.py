"""Networks of other projects turned into ours and back: configs and weights, as pure functions."""
