"""What the papers define: tensors in, tensors out. No files, no terminal, no models.toml."""
