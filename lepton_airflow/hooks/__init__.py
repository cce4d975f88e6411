"""The Airflow hook behind the Lepton connection."""
