"""What a recipe costs on a device, before it is run."""
