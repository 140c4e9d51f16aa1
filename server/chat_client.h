// A gRPC client of shoal.v1.Inference for `shoal chat`. Blocking; cancel() from any thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "server/client_channel.h"
#include "shoal/v1/inference.pb.h"

namespace shoal {

struct ChatAnswer {
  std::string content, reasoning;
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  v1::Usage usage;
  double first_token_seconds = 0, total_seconds = 0;
  bool cancelled = false;
  std::string error;  // empty: fine, or cancelled
};

class ChatClient {
 public:
  explicit ChatClient(const ServerAddress& address);
  ~ChatClient();

  // Waits while the server loads its model, telling `on_wait` how far it is once a second. Throws
  // InvalidInput when no server answers or it cannot become ready.
  v1::GetModelResponse connect(const std::function<void(const std::string&)>& on_wait);
  // `on_delta` gets new reasoning and content as they come. `timeout` 0: none.
  ChatAnswer ask(const v1::ChatRequest& request, double timeout,
                 const std::function<void(const std::string&, const std::string&)>& on_delta);
  // Ends the answer that ask() waits for; true if there was one.
  bool cancel();

 private:
  struct Wire;
  std::unique_ptr<Wire> wire_;
  const ServerAddress address_;
};

}  // namespace shoal
