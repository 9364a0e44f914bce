"""Jobs over whole runs: compared, measured, made cheaper, taught in stages or by another run. None is a method."""
