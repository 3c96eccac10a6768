"""Training, sampling and evaluation of CLIP, prior, decoder and upsamplers."""
