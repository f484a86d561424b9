// For browsers that don't know modules: they can't show a desktop, and should say so.
document.getElementById("status").textContent = "This browser is too old to show a desktop. Any current Chrome, Edge, Firefox or Safari will do.";
