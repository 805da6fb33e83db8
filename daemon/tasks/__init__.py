"""What an example is for a task: how it is encoded, scored and shown. A third task is one new module here."""
