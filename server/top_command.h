// `shoal top`: a live view of a running server, by GetStatus. On a terminal a picture that is drawn anew
// every --interval until q or Ctrl-C; otherwise, or with --once, one picture as plain text.
#pragma once

#include <string>

#include "server/client_channel.h"
#include "shoal/v1/inference.pb.h"

namespace shoal {

struct TopOptions {
  ServerAddress address;
  double interval = 1;  // --interval: seconds
  bool once = false;    // --once
};

// Returns the exit code. Throws InvalidInput when no server answers.
int run_top(const TopOptions& options);

// The picture: `before` is the status `seconds` ago, from which rates are. width: columns at most.
// colour: with ANSI colours and block characters.
std::string top_picture(const v1::GetStatusResponse& before, const v1::GetStatusResponse& now,
                        double seconds, const std::string& server, int width, bool colour);

}  // namespace shoal
