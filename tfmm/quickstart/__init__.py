"""The main job: from raw logs to a served score, with one command."""
