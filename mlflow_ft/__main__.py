"""python -m mlflow_ft: the command, also where the package is not installed but lies in the current folder."""

from mlflow_ft.cli import main

if __name__ == "__main__":
    main()
