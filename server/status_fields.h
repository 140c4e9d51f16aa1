// The fields of GetStatus that only people and `shoal top` look at.
#pragma once

#include "server/engine_client.h"
#include "server/metrics/recent_calls.h"
#include "shoal/v1/inference.pb.h"

namespace shoal {

void fill_observed(const EngineStatus& engine, const RecentCalls::Quantiles& recent,
                   v1::GetStatusResponse* response);

}  // namespace shoal
