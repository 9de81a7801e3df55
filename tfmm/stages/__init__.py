"""The stages of the road as functions over folders: what the commands and the DAG's nodes call, both alike."""
