"""What happened in an organisation, judged from what its users' lists say. Pure.

``docs/organisation.md`` has the terms, the rules in full, and an example of each; the numbers are the same here.

| # | what is known | event | where |
|---|---|---|---|
| 1 | nobody lists a workflow, and users gain it | ``appeared``, ``reappeared`` | ``_coming_into_sight`` |
| 1a | nobody did, and a user's first answer does | none: known from then on | ``_coming_into_sight`` |
| 1b | it disappeared, and a silent user still lists it | ``reappeared``, not proven | ``Evidence._back_from_silence`` |
| 2 | it existed before a user's previous request, and the user gains it | ``access_granted`` | ``_grants`` |
| 2a | it may have come to others at the same moment | none: a late first sight | ``_grants`` |
| 3 | users lost it, and every active user was without it at one moment | ``disappeared`` | ``_gone``, ``Absence`` |
| 3a | nobody lists it but users who wait, before such a moment is known | both, not proven | ``_is_back`` |
| 4 | a user lost it, and an answer lists it that was requested afterwards | ``access_lost`` | ``_lost_alone`` |
| 5 | users lost it, and neither holds | none yet: they wait | ``_while_visible`` |
| 6 | an answer has another name or cycle than the known one | ``renamed``, ``cycle_changed`` | ``_value_changes`` |
| 6a | it repeats the user's last one, and somebody active shows the known one | none | ``_value_changes`` |

An event lies after the request of one answer (``last_unchanged_at``), and before another had arrived (``observed_at``).
``intervals`` has the function that finds both, and all that it takes:

- 1, ``of_appearance``: the earliest, over everybody, of the latest requests that were answered without it, and the
  first answer with it; if not proven, the latest request of those who gained it, or, if nobody did (1b), its
  disappearance
- 2, ``Gain.interval``: the user's last request answered without it, and the user's first answer with it
- 3, ``Absence.interval``: the last request that was answered with it, and the first answer without it of the user who
  lost it last; if not proven, the last answer that was known when it was reported,
  unless a later one has it
- 4, ``of_losses``: the user's last request answered with it, and the user's first answer without it
- 6, ``of_change``: the last request answered with the old value, and the first answer with the new one

``rules`` decides which events there are. The answers come from the versions of users' lists (``versions``); ``values``
has what goes in and comes out.
"""
