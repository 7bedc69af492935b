"""The served judge without the web server: request bodies and admission control."""
