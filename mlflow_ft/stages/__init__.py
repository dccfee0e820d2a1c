"""The run, one step a file: start, data, model, train, evaluate, package, register."""
