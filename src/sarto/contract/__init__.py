"""The contract between control and engine: input and output of each program of the engine. Read `tuning_run` first."""
