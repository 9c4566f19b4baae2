"""EnOS on this machine, for the tests: the demo's gateway with every service that is asked, and ordered faults.

python -m tests.support.enos --port 8900      # and by hand: see CONTRIBUTING.md
"""

from tests.support.enos.faults import Fault, Kind, Order
from tests.support.enos.gateway import Delivery, LocalGateway

__all__ = ["Delivery", "Fault", "Kind", "LocalGateway", "Order"]
