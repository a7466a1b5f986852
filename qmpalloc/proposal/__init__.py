"""From QEMUs that run to a configuration: what they tell, which sizes that suggests, and a file that says why."""

from qmpalloc.proposal.document import document
from qmpalloc.proposal.seen import Seen
from qmpalloc.proposal.sizes import Proposal, propose
from qmpalloc.proposal.survey import survey

__all__ = ["Proposal", "Seen", "document", "propose", "survey"]
