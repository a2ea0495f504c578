"""HTTP requests and answers: models, validation, the error envelope."""
