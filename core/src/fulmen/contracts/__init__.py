"""What fulmen promises: one file per contract, each importing torch and typing and little else."""
