// The end of `shoal serve` after a signal: NOT_SERVING, no new calls, running ones until --drain-timeout, the
// ranks. A second signal leaves out every wait.
#pragma once

#include <chrono>

namespace shoal {

class EngineSupervisor;
class FrontEnd;
class GrpcServer;
class ServiceNotify;
class StopSignals;

struct Served {
  GrpcServer& server;
  FrontEnd& front_end;
  EngineSupervisor& engine;
  StopSignals& signals;
  ServiceNotify& notify;
};

// Returns when every call has ended, the server listens no more and the ranks are gone: `timeout` and some 8
// seconds at most, 2 seconds from the second signal on, and as soon while the model loads.
void drain(const Served& served, std::chrono::milliseconds timeout);

}  // namespace shoal
