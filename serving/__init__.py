"""What runs after a push: the model server, the replicator and the stream of new items."""
