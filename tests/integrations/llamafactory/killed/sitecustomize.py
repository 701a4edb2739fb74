"""On the path of the runs that are killed."""

import killing

killing.register()
