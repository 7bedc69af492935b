"""The served judge, without a web server: request bodies and admission control."""
