"""What every other package may use: files, images, ranks."""
