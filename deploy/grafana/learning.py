"""Does it learn, and does it still look around?"""

from deploy.grafana.panels import Dashboard, Panel, ratio, stored, summed

_POLICY = 'policy=~"$policy"'
_DECISIONS = "croupier_decisions_total"

_ROWS = {
    "What is learned": (
        Panel(
            "Rewards learned",
            "Rewards that taught something, per policy. 0 while people click: see Outcomes in Feedback.",
            "ops",
            (
                (
                    "{{policy}}",
                    stored(f'croupier_reward_outcomes_total{{{_POLICY},outcome=~"applied|amended"}}', "policy"),
                ),
            ),
        ),
        Panel(
            "Explore share",
            "Share of decisions that explore: what it costs to go on learning. At 0 nothing new is found; ask with "
            "mode explore for some of the traffic. Without it there is no lift to compare with.",
            "percentunit",
            (
                (
                    "{{policy}}",
                    ratio(
                        summed(f'{_DECISIONS}{{{_POLICY},mode="explore"}}', "policy"),
                        summed(f"{_DECISIONS}{{{_POLICY}}}", "policy"),
                    ),
                ),
            ),
            max=1,
        ),
    ),
    "What is shown": (
        Panel(
            "Entropy of what is shown",
            "How spread the choices are, in nats: ln(n) where n items are equally likely, 0 where it is always one. "
            "Near 0 early: it has committed; is one arm really that much better?",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_arms_entropy{{{_POLICY}}})"),),
        ),
        Panel(
            "Distinct items shown",
            "Items played at least once. Far below the catalogue: raise alpha, or set fresh to first.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_distinct_items_shown{{{_POLICY}}})"),),
        ),
    ),
    "In the banks": (
        Panel(
            "Bank balance",
            "Sum of V over a policy's banks. It grows with noise and delay; a jump without a change of traffic means "
            "that rewards have another scale now.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_bank_balance{{{_POLICY}}})"),),
        ),
        Panel(
            "Borrowed",
            "What the classic rule has borrowed. Growth without end: answers do not come back; give the policy a "
            "default reward and a window.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_bank_borrowed{{{_POLICY}}})"),),
        ),
        Panel(
            "Banks",
            "Banks of a policy, the shared one included. At max_segments + 1 further segments share one: raise it or "
            "use fewer segments.",
            "none",
            (("{{policy}}", f"max by (policy) (croupier_banks{{{_POLICY}}})"),),
        ),
    ),
}
LEARNING = Dashboard(
    "Learning",
    "Does it learn, does that help, and does it still look around? Look here after a change of policy or graph.",
    _ROWS,
)
