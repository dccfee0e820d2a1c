"""`python -m mlflow_ft.docs` writes the generated pages."""

from mlflow_ft.docs import main

if __name__ == "__main__":
    main()
