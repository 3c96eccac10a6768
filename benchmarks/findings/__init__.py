"""The paper's comparisons on a demo's networks: priors, guidance, re-ranking, upsamplers."""
