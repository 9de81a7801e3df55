"""All that is online, over a trained workdir: broker, index, stream, server, near-line trainer, a shop's traffic."""
