"""`python -m mlflow_ft.docs` writes the pages anew."""

from mlflow_ft.docs import main

if __name__ == "__main__":
    main()
