"""What the tutorial keeps in pkg/: settings, codes, logging, tools; and the server."""
