"""Parts that Salt's plugins share: arguments, results, file server, errors."""
