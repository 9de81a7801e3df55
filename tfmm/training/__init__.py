"""What every trainer shares: the epoch loop, checkpoints that resume exactly, and progress reports."""
