"""Figures of a model on pictures: likelihood, reconstruction, retrieval, denoising, distance of samples."""
