from django.apps import AppConfig


class TrialConfig(AppConfig):
    name = "demo_project.trial"

    def ready(self) -> None:
        from demo_project.trial import sabotage

        sabotage.apply()
