"""From one device to many, on the engines of each backend."""
