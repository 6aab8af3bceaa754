"""Floor 3: from one device to many, on the engines that exist."""
