// Ctrl-C during a call of minutes.
#pragma once

namespace ctc_align {

// Has the user asked to stop? To be called every few milliseconds or less often, by any thread; it costs next to nothing.
//
// Python runs its signal handlers on the main thread, between two of its own instructions: not while that thread is in
// here. So twice a second the main thread lets them run. If one raises (KeyboardInterrupt), the answer is yes, and the
// exception stays set as Python's current one: it becomes the cause of the error that the caller sees. A handler that
// only takes a note does not end the call. Where there is no Python in the process the answer is always no; Python's
// functions are looked up by name, so that this library does not depend on any version of it.
bool interrupted();

}  // namespace ctc_align
